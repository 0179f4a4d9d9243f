"""When the sampled frames of a video are, and how a prompt says it."""

from collections.abc import Sequence
from itertools import pairwise

from omni.media import FramePlan, Video


def frame_spans(plan: FramePlan) -> tuple[tuple[float, float], ...]:
    """From each sampled frame to the next; the last one to the end of the clip."""
    times = plan.timestamps_s
    end = max(plan.duration_s, times[-1] + 1 / plan.source_fps)
    return tuple(zip(times, (*times[1:], end), strict=True))


def unsampled_spans(video: Video, plan: FramePlan) -> tuple[tuple[float, float], ...]:
    """From the first frame between two sampled ones to the second of these."""
    times = [*video.info.frame_times_s.tolist(), frame_spans(plan)[-1][1]]
    return tuple(
        (times[sampled + 1], times[following])
        for sampled, following in pairwise((*plan.indices, video.num_frames))
        if following > sampled + 1
    )


def label_times(video: Video, plan: FramePlan) -> list[float]:
    """Seconds that the prompt states for each sampled frame.

    The released model counts time as frame index times a frame duration that is cut to whole
    milliseconds (33 ms at 30 fps), and was trained so. Where the source's frame rate varies, that
    would be wrong by any amount, and the true times are stated.

    Args:
        video: The source.
        plan: Its sampled frames.

    Returns:
        One time a frame.
    """
    tolerance_s = 1.5 / plan.source_fps
    is_steady = all(
        abs(index / plan.source_fps - time) <= tolerance_s
        for index, time in zip(plan.indices, plan.timestamps_s, strict=True)
    )
    if not is_steady:
        return list(plan.timestamps_s)
    frame_ms = int(1000.0 / plan.source_fps)
    return [index * frame_ms / 1000.0 for index in plan.indices]


def tubelet_labels(times_s: Sequence[float], frames_per_tubelet: int) -> list[str]:
    """``Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: `` and so on.

    Args:
        times_s: Seconds of each sampled frame.
        frames_per_tubelet: Frames that share a label; the last tubelet may have fewer.

    Returns:
        One label a tubelet.
    """
    labels = []
    for start in range(0, len(times_s), frames_per_tubelet):
        group = times_s[start : start + frames_per_tubelet]
        parts = [
            f"{'frame' if offset else 'Frame'} {start + offset + 1} sampled at {time:.2f} seconds"
            for offset, time in enumerate(group)
        ]
        labels.append(" and ".join(parts) + ": ")
    return labels
