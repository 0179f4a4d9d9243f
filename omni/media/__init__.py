"""The media gateway: every image, video, recording and document enters here.

```python
from omni.media import load_media

video = load_media("clip.mp4")
for frame in video.frames(video.plan(fps=1, num_frames=64)):  # uint8 (H, W, 3), one at a time
    ...
```
"""

from omni.media.audio import CLIP_SAMPLES, SAMPLING_RATE, Audio
from omni.media.detect import MediaKind
from omni.media.document import Document
from omni.media.gateway import Media, MediaSource, VideoBackend, kind_of, load_media
from omni.media.image import Image
from omni.media.limits import MediaLimits
from omni.media.video import FramePlan, Video, VideoInfo, plan_frames

__all__ = [
    "CLIP_SAMPLES",
    "SAMPLING_RATE",
    "Audio",
    "Document",
    "FramePlan",
    "Image",
    "Media",
    "MediaKind",
    "MediaLimits",
    "MediaSource",
    "Video",
    "VideoBackend",
    "VideoInfo",
    "kind_of",
    "load_media",
    "plan_frames",
]
