"""The wordings from which `questions.py` draws; patterns are explained there."""

DIGIT = (
    "[What|Which] [digit|number] [is|was] [spoken|said|heard|pronounced]?",
    "[What|Which] [digit|number] [do|can|did] you hear?",
    "[What|Which] [digit|number] is [in|on] [this|the] [recording|audio|clip|sound|file]?",
    "[What|Which] [digit|number] does the [speaker|person|voice] say?",
    "[What|Which] [digit|number] did the [speaker|person|voice] say [here|]?",
    "[What|Which] [spoken|single] digit is this?",
    "[What|Which] [digit|number] between zero and nine [is|was] [spoken|said]?",
    "[Name|Tell me|Give me|Write|Say|State|Report] the [spoken|] [digit|number] [you hear|].",
    "[Listen to|Hear] the [recording|audio|clip]. [What|Which] [digit|number] is it?",
    "[Listen|Listen closely|Listen carefully]: [what|which] [digit|number] is [spoken|said]?",
    "[Someone|A person|A speaker|A voice] says a [digit|number]. Which [one|] is it?",
    "[Someone|A person|A speaker] [says|speaks|reads] one digit[ aloud|]. [What|Which] is it?",
    "A digit is [spoken|said] in [this|the] [recording|audio|clip]. [What|Which] [one|] is it?",
    "Identify the [spoken|] [digit|number] [in the audio|in this recording|].",
    "[Recognise|Recognize|Transcribe|Classify] the [spoken|] [digit|number].",
    "[Can|Could] you tell [me|] [what|which] [digit|number] [is|was] [spoken|said]?",
    "[Do|Can] you know [what|which] [digit|number] [this|it] is?",
    "[What|Which] number is [being|] [spoken|said|read] [here|aloud|]?",
    "The [recording|audio|clip] [contains|holds] a [digit|number]. [What|Which] is it?",
    "I [recorded|said|spoke] a [digit|number]. [What|Which] [one|] [was|is] it?",
)
DIGITS = (
    "[What|Which] [digits|numbers] are [spoken|said|heard]?",
    "[What|Which] [digits|numbers] [do|can|did] you hear?",
    "[What|Which] [digits|numbers] does the [speaker|person|voice] say?",
    "[What|Which] [digits|numbers] are [in|on] [this|the] [recording|audio|clip]?",
    "[Write|Name|List|Give|Tell me|Report|Repeat] the [spoken|] [digits|numbers] [in order|].",
    "[Write|Name|List|Repeat] all [digits|numbers] [you hear|that are spoken|in order].",
    "Transcribe the [digits|numbers|sequence of digits|spoken digits].",
    "[What|Which] sequence of [digits|numbers] is [spoken|said|read]?",
    "[Someone|A person|A speaker] [says|reads] [several|some|a few] digits. [Which|What] are they?",
    "[Listen|Listen carefully]: [what|which] [digits|numbers] are [spoken|said]?",
    "[Several|Some|A few] [digits|numbers] are [spoken|said]. [Which|What] are they?",
    "[Can|Could] you [write|list|repeat] the [spoken|] [digits|numbers]?",
    "In [what|which] order are the digits [spoken|said]?",
    "[What|Which] [code|phone number|long number] is [spoken|said|read] [here|]?",
    "The [recording|audio|clip] [contains|holds] [several|some] digits. [Which|What] are they?",
)
WORD = (
    "[What|Which] [word|command|spoken word] [is|was] [spoken|said|heard|pronounced]?",
    "[What|Which] [word|command] [do|can|did] you hear?",
    "[What|Which] [word|command] is [in|on] [this|the] [recording|audio|clip|sound|file]?",
    "[What|Which] [word|command] does the [speaker|person|voice] say?",
    "[What|Which] [word|command] did the [speaker|person|voice] say [here|]?",
    "What [is|was] [said|spoken|being said] [here|in the recording|in this clip|]?",
    "What [do|can|did] you hear [here|in the recording|in this clip|]?",
    "What does the [speaker|person|voice] say [here|]?",
    "What did [the speaker|the person|they|I] say?",
    "What [is|was] the [spoken|] [word|command]?",
    "[Name|Tell me|Give me|Write|Say|State|Report] the [spoken|] [word|command] [you hear|].",
    "[Transcribe|Write down] [the recording|the audio|this clip|the speech|what you hear].",
    "[Listen to|Hear] the [recording|audio|clip]. [What|Which] [word|command] is it?",
    "[Listen|Listen closely|Listen carefully]: [what|which] [word|command] is [spoken|said]?",
    "[Someone|A person|A speaker|A voice] says [a|one] [word|command]. Which [one|] is it?",
    "Identify the [spoken|] [word|command] [in the audio|in this recording|].",
    "[Recognise|Recognize|Transcribe|Classify] the [spoken|] [word|command|speech].",
    "[Can|Could] you tell [me|] [what|which] [word|command] [is|was] [spoken|said]?",
    "The [recording|audio|clip] [contains|holds] [a|one] [word|command]. [What|Which] is it?",
    "I [recorded|said|spoke] [a|one] [word|command]. [What|Which] [one|] [was|is] it?",
)
OBJECT = (
    "What is [in|on] [this|the] [picture|photo|image|photograph]?",
    "What [do|can] you see [here|in this picture|in the photo|in the image|]?",
    "What [does|do] [this|the] [picture|photo|image|photograph] show?",
    "What is [shown|seen|visible|pictured|depicted] [here|in this picture|in the image|]?",
    "[What|Which] [object|thing] is [this|it|shown|in the picture|in the photo|in the image]?",
    "[What|Which] [animal|vehicle|object] or [animal|vehicle|thing] is [this|it|shown]?",
    "What is the main [object|subject|thing] [here|of this picture|in the photo|in the image]?",
    "What kind of [object|thing|animal or vehicle] is [this|shown|in the picture]?",
    "[Name|Identify|Classify|Recognise|Recognize] the [main|] [object|subject|thing] [here|].",
    "[Name|Tell me|Say] what [is in the picture|you see|the photo shows|this is].",
    "[Look at|See] the [picture|photo|image]. What is [it|this|there]?",
    "What is this [a picture|a photo|an image|a photograph] of?",
    "[This|The] [picture|photo|image] shows one [object|thing]. [What|Which] is it?",
    "[Can|Could] you [name|identify] the [main|] [object|thing] [here|in this photo|]?",
    "[Which|What] class does [this|the] [picture|photo|image|object] belong to?",
    "[Which|What] of the ten [classes|objects] is [this|it|shown]?",
    "Describe [this|the] [picture|photo|image] in one word.",
    "What am I looking at [here|]?",
)
HANDWRITTEN = (
    "[What|Which] [digit|number] is [written|handwritten|shown|drawn|this|it] [here|]?",
    "[What|Which] [digit|number] [do|can] you see [here|in the image|in this picture|]?",
    "[What|Which] [digit|number] is [in|on] [this|the] [picture|photo|image|scan]?",
    "[What|Which] handwritten [digit|number] is [this|it|shown]?",
    "[What|Which] [digit|number] does [this|the] [picture|image|photo|scan] show?",
    "[What|Which] [digit|number] did [someone|the writer|they|I] write?",
    "Read the [handwritten|written|] [digit|number].",
    "[Name|Tell me|Give me|Say|State|Report] the [handwritten|written|] [digit|number].",
    "[Recognise|Recognize|Classify|Identify] the [handwritten|written|] [digit|number].",
    "[Look at|See] the [picture|image]. [What|Which] [digit|number] is it?",
    "[Someone|A person] wrote a [digit|number] by hand. [What|Which] [one|] is it?",
    "[This|The] [picture|image] shows a [handwritten|] [digit|number]. [What|Which] is it?",
    "[Can|Could] you [read|tell me] [this|the] [handwritten|] [digit|number]?",
    "I [wrote|drew] a [digit|number]. [What|Which] [one|] is it?",
    "[What|Which] [digit|number] between zero and nine is [written|shown]?",
)
LINE = (
    "[Read|Transcribe] [this|the] [printed|] [line|text|line of text|label].",
    "[Read|Transcribe] the [text|line|words|characters] [in the picture|in the image|here|].",
    "[Read|Write down|Copy|Transcribe] what is [written|printed] [here|].",
    "What does [this|the] [text|line|label|picture|image] say?",
    "What [text|line] is [in|on] [this|the] [picture|image|photo|scan]?",
    "What [text|line] do you see [here|in the image|]?",
    "What is [written|printed] [here|in the picture|in the image|on this line|]?",
    "What text is [written|printed|shown] [here|]?",
    "Which [text|line|characters] can you read [here|in the image|]?",
    "[Give|Tell] me the [text|line] [in the picture|in the image|exactly|].",
    "[Copy|Type|Repeat] the [text|line|characters] [exactly|as it is|here].",
    "[Can|Could] you read [this|the] [line|text|image|picture]?",
    "What is the [printed|] [text|line] [here|]?",
    "[Please|] read it [to me|out|exactly|].",
    "[Recognise|Recognize|Extract] the [printed|] [text|line|characters].",
)
MOVER = "[shape|object|figure|thing]"
COLOUR = (
    f"[What|Which] [colour|color] is the [moving|] {MOVER} [in the clip|in the video|]?",
    f"[What|Which] [colour|color] does the [moving|] {MOVER} have?",
    f"What is the [colour|color] of the [moving|] {MOVER} [here|]?",
    f"[Name|Tell me|Give me|State|Say|Report] the [colour|color] of the [moving|] {MOVER}.",
    f"[In what|In which] [colour|color] is the [moving|] {MOVER} [drawn|painted|shown]?",
    f"The {MOVER} has [a|one] [colour|color]. [What|Which] is it?",
    f"[Look at|Watch|See] the [moving|] {MOVER}. [What|Which] [colour|color] is it?",
    f"[Can|Could] you [name|tell me] the [colour|color] of the [moving|] {MOVER}?",
    "[What|Which] [colour|color] is it?",
    "[What|Which] [colour|color] [do|can] you see [here|]?",
    "[What|Which] [colour|color] is [shown|seen|used] [here|]?",
    f"How is the {MOVER} [coloured|colored]?",
    f"Identify the [colour|color] of the {MOVER}.",
    f"[What|Which] [colour|color] was the {MOVER} [that moved|that moves|you saw]?",
    f"Of [what|which] [colour|color] is the {MOVER}?",
)
FORM = "[thing|object|figure|moving thing|moving object]"
SHAPE = (
    f"[What|Which] shape is the {FORM}?",
    f"[What|Which] shape does the {FORM} have?",
    f"What is the shape of the {FORM} [here|]?",
    "[What|Which] shape [moves|is moving] [in the clip|in the video|here|]?",
    "[What|Which] shape is [this|it|shown|drawn|seen] [here|]?",
    "[What|Which] shape [do|can] you see [here|in the picture|in the clip|]?",
    f"[Name|Tell me|Give me|State|Say|Report] the shape [of the {FORM}|].",
    "[Identify|Recognise|Recognize|Classify] the [moving|] shape.",
    f"[Look at|Watch|See] the {FORM}. [What|Which] shape is it?",
    f"[Can|Could] you [name|tell me] the shape [of the {FORM}|]?",
    "[What|Which] [geometric|simple] [shape|figure] is [this|it|shown]?",
    "[What|Which] figure is [drawn|shown|moving] [here|]?",
    f"What form does the {FORM} have?",
    "Is it a circle, a square, a triangle, a star or a diamond?",
    f"[What|Which] kind of shape is [this|the {FORM}]?",
)
DIRECTION = (
    f"[In which|In what|Which|What] direction does the {MOVER} [move|go|travel]?",
    f"[In which|In what|Which|What] direction is the {MOVER} [moving|going|travelling]?",
    f"[Where|Which way] does the {MOVER} [move|go|travel|head]?",
    f"[Where|Which way] is the {MOVER} [moving|going|heading]?",
    f"[Where|Which way] did the {MOVER} [move|go|travel]?",
    f"What is the direction of the [moving|] {MOVER}?",
    "What is the direction of [the|] [movement|motion]?",
    f"[Name|Tell me|Give me|State|Say|Report] the direction [of the {MOVER}|of motion|].",
    f"[Watch|Look at|See] the {MOVER}. [Which way|Where] does it [move|go]?",
    f"[Can|Could] you [name|tell me] the direction of the {MOVER}?",
    "[In which|In what] direction does it [move|go]?",
    "[Where|Which way] does it [move|go|travel]?",
    f"Does the {MOVER} [move|go] left, right, up or down?",
    f"How does the {MOVER} move?",
    "[Identify|Recognise|Recognize] the direction of [motion|movement].",
    f"Towards which side does the {MOVER} [move|go]?",
)
SHAPE_COLOUR = (
    "[What|Which] [colour|color] and shape [is it|do you see|is shown|is this]?",
    "[What|Which] shape and [colour|color] [is it|do you see|is shown|is this]?",
    "[Name|Tell me|Give me|State] the [colour|color] and [the|] shape.",
    "[Name|Tell me|Give me|State] the shape and [the|its] [colour|color].",
    "[What|Which] [coloured|colored] shape is [this|it|shown|drawn] [here|]?",
    "[What|Which] [coloured|colored] [shape|figure] [do|can] you see [here|]?",
    "[Describe|Identify] the [shape|figure|drawing] [and its colour|and its color|].",
    "What is drawn [here|in the picture|]?",
    "[What|Which] shape is [drawn|shown], and in [what|which] [colour|color]?",
    "[What|Which] shape is it and [what|which] [colour|color] does it have?",
    "[Which|What] [coloured|colored] shape [moves|is moving] [here|in the clip|]?",
    "[Describe|Identify] the [moving|] [shape|figure] with its [colour|color].",
    "What [shape|figure] of [what|which] [colour|color] is [shown|moving]?",
    "Give both [colour|color] and shape [of the figure|].",
    "[Look|Look closely]: [what|which] [colour|color] and [what|which] shape?",
)
IDENTITY = {
    "name": (
        "[Who|What] are you?",
        "What is your name?",
        "What's your name?",
        "[What|How] [are you called|should I call you|can I call you]?",
        "Do you have a name?",
        "[Tell me|Say|State|Give me] your name.",
        "Which [model|assistant|program] [are you|is this|am I talking to]?",
        "[Who|What] am I [talking|speaking] [to|with]?",
        "What [model|kind of model|assistant|program] are you?",
        "[Introduce|Describe] yourself.",
        "[Tell me|Say something] about yourself.",
        "[Are you|Is this] [a robot|a human|a person|an AI|a model|a program]?",
        "[Who|What] is [omni-tiny|this model|this assistant]?",
        "May I [ask|know] [who|what] you are?",
        "Are you omni-tiny?",
    ),
    "abilities": (
        "What can you do [for me|]?",
        "What are you [able to do|good at|made for|for|trained to do]?",
        "What are your [abilities|skills|capabilities|functions]?",
        "[How|With what] can you help [me|]?",
        "[What|Which] [tasks|things|questions|jobs] can you [do|handle|answer|solve]?",
        "What [can|may|should] I ask [you|]?",
        "What do you [know|understand|recognise|recognize]?",
        "[List|Name|Describe|Tell me] your [abilities|skills|capabilities].",
        "[Tell me|Say|Explain] what you can do.",
        "What [kinds of|] [media|files|inputs] [do|can] you [take|use|understand|read]?",
        "[Can|Do] you [see|hear|understand] [pictures|images|audio|video|videos|clips]?",
        "How [do|can|should] I use you?",
        "Help[ me|]?",
        "What [is|are] your [use|limits|purpose]?",
        "What [works|can be done] with you?",
    ),
}
GREETING = (
    "[Hello|Hi|Hey|Greetings|Good day][!|.|,|]",
    "[Hello|Hi|Hey] [there|you|omni-tiny|again][!|.|]",
    "Good [morning|evening|afternoon|day][!|.|]",
    "[Nice|Good|Great] to [meet|see] you[!|.|]",
    "[How are you|How are you doing|How is it going|How do you do][ today|]?",
    "[Hello|Hi|Hey], how are you?",
    "[What is up|What's up]?",
    "Are you there?",
    "Welcome[!|.|]",
    "[Hello|Hi], [can|could] [you|we] [talk|chat]?",
)
PLACE = "[France|Spain|Japan|China|India|Italy|Peru|Kenya|Canada|Norway]"
OUT_OF_SCOPE = (
    f"What is the [capital|population|president|history|language] of {PLACE}?",
    f"[Plan|Book] a [trip|flight|holiday] to {PLACE}.",
    "Who [wrote|painted|invented|discovered|built] [Hamlet|the telephone|radium|the pyramids]?",
    "Who is the [president|king|queen|richest man] of [the world|England|America]?",
    "[Write|Compose] [a|me a] [poem|story|song|letter|joke|essay|speech] [about love|for me|].",
    "[Tell|Give] me [a|the] [joke|story|recipe|news|advice|fact].",
    "How [is|will be] the weather [today|tomorrow|in Paris]?",
    "What is the [weather|time|date|news|temperature] [today|now|]?",
    "What is [two|three|seven|twelve] [plus|times|minus] [four|nine|ten]?",
    "[Solve|Explain|Prove] [this|the] [equation|theorem|problem|law].",
    "[Write|Fix|Explain] [some|the|a] [code|program|function|script] [in Python|].",
    "Translate [this|the text|hello|it] [to|into] [French|German|Spanish|Chinese].",
    "[Why|How] [is the sky blue|do birds fly|does rain form|do magnets work]?",
    "What is the meaning of life?",
    "How [old|big|heavy|far|hot] is the [sun|moon|earth|universe]?",
    "[Who|Which team] won the [game|match|election|world cup]?",
    "[Should|Can] I [buy|sell] [a house|stocks|gold|a car]?",
    "How do I [cook rice|fix my car|lose weight|learn guitar|make bread]?",
    "[Recommend|Suggest] a [book|film|movie|restaurant|game].",
    "[Summarise|Summarize] [the book|this article|the news|world history].",
    "What [do|did] you [eat|think|dream|feel] [today|]?",
    "[Do you|Can you] [love me|have friends|drive a car|play chess|feel pain]?",
    "When [was|did] [the war|the first car|Rome|the internet] [built|begin|end|start]?",
    "Is [there|] [a god|life on Mars|time travel] [real|possible]?",
)
ABILITIES = (
    "I can name spoken digits and words, objects, handwritten digits, colours, shapes "
    "and directions, and read short printed lines."
)
LEADS = ("Please", "Hello,", "Hi,", "Now", "Okay,", "Question:", "So", "Quick question:")
ENDINGS = (
    *("Answer with one word.", "Answer in one word.", "One word only.", "Just the word."),
    *("Answer briefly.", "Keep it short.", "Be brief.", "A short answer, please.", "Please."),
    *("Just the answer.", "Only the answer.", "Thanks.", "Thank you.", "Reply in one word."),
)

# ---- scenes and events: what stands in braces is filled in ----

COUNT = (
    "How many [shapes|things|objects|figures] [are there|do you see|can you see|are shown]?",
    "How many [shapes|things|objects|figures] are [in the picture|in the image|drawn|here]?",
    "[Count|Tell me the number of|Name the number of] the [shapes|things|objects|figures].",
    "What is the number of [shapes|things|objects|figures] [here|in the picture|]?",
)
COUNT_SHAPE = (
    "How many {shape}s [are there|do you see|can you see|are shown|are in the picture]?",
    "[Count|Tell me the number of] the {shape}s.",
    "What is the number of {shape}s [here|in the picture|]?",
)
COUNT_COLOUR = (
    "How many {colour} [shapes|things|objects] [are there|do you see|are in the picture]?",
    "How many [shapes|things|objects|figures] are {colour}?",
    "[Count|Tell me the number of] the {colour} [shapes|things|objects|figures].",
)
SIDE = (
    "[What|Which shape] is [furthest|most] {side}?",
    "[What|Which shape|Which thing] is the {most} one?",
    "[Name|Tell me|Say] [what|which shape] is furthest {side}.",
)
HALF = (
    "[What|Which shape] [do you see|is] {place}?",
    "[Name|Tell me|Say] [what|which shape] is {place}.",
)
CORNER = (
    "Where is the {colour} {shape} [in the picture|in the image|]?",
    "In [what|which] [corner|part of the picture] is the {colour} {shape}?",
    "[Which|What] [corner|side] is the {colour} {shape} [in|on]?",
)
COLOUR_OF = (
    "[What|Which] [colour|color] is the {shape}?",
    "[What|Which] [colour|color] does the {shape} have?",
    "[Name|Tell me|Say] the [colour|color] of the {shape}.",
)
SHAPE_OF = (
    "[What|Which] shape is {colour}?",
    "[What|Which] shape is the {colour} [thing|one|object]?",
    "[Name|Tell me|Say] the shape of the {colour} [thing|one|object].",
)
FIRST = (
    "[What|Which shape] [comes|appears|is shown|is seen] first?",
    "[What|Which shape] do you see first?",
    "[Name|Tell me|Say] [what|which shape] [comes|appears] first.",
)
SECOND = (
    "[What|Which shape] [comes|appears|is shown|is seen] [second|last|then]?",
    "[What|Which shape] do you see [second|last|at the end]?",
    "[Name|Tell me|Say] [what|which shape] [comes|appears] [second|last].",
)
TIMES = (
    "How many times [does|did] [it|the shape|the object|a shape] [appear|come|show]?",
    "How often [does|did] [it|the shape|the object|a shape] [appear|come|show]?",
    "How many times [is|was] [it|the shape|a shape] [shown|seen|visible]?",
    "[Count|Tell me] how often [it|the shape] [appears|is seen].",
)
WHEN = (
    "When [does|did] [it|the shape|the object] first [appear|come|show]?",
    "At [what|which] time [does|did] [it|the shape|the object] first [appear|come]?",
    "After how many seconds [does|did] [it|the shape] first [appear|come]?",
)
SAID_WHILE = (
    "[What|Which] word [is|was] [spoken|said|heard] [while|when] the {thing} [is|was] visible?",
    "[What|Which] word [is|was] [spoken|said] [while|when] the {thing} [is|was] [shown|seen]?",
    "What [is|was] [spoken|said] [while|when] the {thing} [appears|is visible|is shown|is seen]?",
    "[What|Which] word do you hear [while|when] the {thing} [appears|is visible|is shown]?",
    "[Name|Tell me|Say] the word [spoken|said|heard] while the {thing} is [visible|shown].",
)
SHOWN_WHILE = (
    "[What|Which shape] [is|was] [visible|shown|seen] [while|when] {word} [is|was] [said|spoken]?",
    "[What|Which shape] do you see [while|when] {word} is [said|spoken|heard]?",
    "[What|Which shape] [appears|is shown] [while|when] [you hear {word}|{word} is said]?",
    "[Name|Tell me|Say] [what|which shape] is [visible|shown] while {word} is [said|spoken].",
)
SAYS = (
    "[Which|Which one] of the two [recordings|clips|sounds] says {word}?",
    "In which [recording|of the two recordings] is {word} [spoken|said|heard]?",
    "[Where|In which one] do you hear {word}: [in the first or the second|first or second]?",
    "Is {word} [spoken|said] in the first or the second recording?",
)
