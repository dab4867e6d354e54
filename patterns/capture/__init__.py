"""Bring the subgraph that computes a mask into functional ATen form, whatever capture the graph came from.

The ancestors of the mask are copied into a small graph and traced once with make_fx on the graph's own fake tensors,
so a Dynamo graph of torch functions, an ExportedProgram's graph with composite ops and sub-graphs, and a post-AOT
graph are all read through one vocabulary. Functionalisation turns in-place writes into values, so an index write into
a mask is read like any other op. Nodes that write into a tensor the mask depends on (or into an alias of it) belong
to its ancestors too.

Tracing replays ops that were traced before, so every size question it asks has been asked before and no guard arises.
Should one arise all the same, the capture is refused and the ShapeEnv stays as it was.
"""

from .masks import CapturedMasks, capture_masks

__all__ = ["CapturedMasks", "capture_masks"]
