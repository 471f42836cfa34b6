"""TRACE: eight domains, learnt one after the other   (Wang et al., 2023, arXiv 2310.06762).

Stance detection in Chinese, central-bank statements, meeting summaries, code, science questions, two kinds of
arithmetic, and German text simplification. The data is not shipped: pass the folder of one of its releases (500, 1000
or 5000 training rows per task). Results on different releases are not comparable, nor are results with the epochs of
the paper and of the released code; the code's are used here.
"""

from __future__ import annotations

from benchmarks.trace.overlaps import Overlap
from benchmarks.trace.scoring import score
from benchmarks.trace.sequence import Trace

__all__ = ["Overlap", "Trace", "score"]
