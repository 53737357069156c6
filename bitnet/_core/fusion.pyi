from collections.abc import Sequence

from bitnet._core.packing import PackedWeight

def fuse(weights: Sequence[PackedWeight]) -> PackedWeight: ...
