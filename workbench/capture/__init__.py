"""What was trained in which order, written down while it is trained, by the one who trains.

`records` keeps the notes on disk, `capture` gathers them and makes transcripts and commitments of
them; `loaders`, `trainer` and `lightning` are the places in other people's training loops where
the examples are seen. Importing this package loads neither torch nor transformers nor Lightning.
"""

from workbench.capture.capture import Capture, CommittedPlan
from workbench.capture.records import example_content, example_digest

__all__ = ["Capture", "CommittedPlan", "example_content", "example_digest"]
