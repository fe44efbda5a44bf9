"""What a user would do without a Gaussian map: the same 2D labels, and depth and poses to carry them elsewhere.

Both baselines take frames whose `labels` are the 2D labels, with `integrate(frame)`, and have
`render(camera, T_map_camera, depth=None)`, so `panoptic_mapper.evaluation.evaluate` measures them like the mapper. With
a measured `depth` of the view, labels are looked up at it, which no map could know: that is generous to a baseline.

`true_association` is none of them: it is told the true objects, to show what is lost by association and what by labels.
"""
