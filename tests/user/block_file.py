"""The text of a user's block file; when it runs, it says so in the file that TRACE names."""

BLOCKS = '''\
import os

import nas
from torch import nn

if "TRACE" in os.environ:
    with open(os.environ["TRACE"], "a") as trace:
        trace.write(f"{__file__}\\n")


@nas.block(paper="Ours, 2026", knobs={"ratio": nas.Knob(2.0, "width of the middle", float, low=0.5, high=4)})
class MyBlock(nn.Module):
    """A bottleneck; `fast` leaves the convolution of pixels out."""

    def __init__(self, c1, c2, depth=1, *, heads=4, ratio=2.0, fast: bool = False, act=nn.SiLU):
        super().__init__()
        if heads > c2:
            raise ValueError(f"{heads} heads need as many channels")
        middle = max(heads, int(c2 * ratio) // heads * heads)
        layers = [nn.Conv2d(c1, c2, 1), act()]
        for _ in range(depth):
            layers += [nn.Conv2d(c2, middle, 1), act()]
            layers += [] if fast else [nn.Conv2d(middle, middle, 3, padding=1, groups=heads), act()]
            layers += [nn.Conv2d(middle, c2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)
'''
