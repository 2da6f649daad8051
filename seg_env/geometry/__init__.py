"""Rings, masks and run lengths: tracing, filling by COCO's rule, overlap and simplification.

`polygon` knows rings, `rle` run lengths; `contour` goes from masks to rings, `raster` back;
`regions` knows filled spans and their boundaries, `overlap` counts shared pixels without masks,
`simplify` spares vertices.
"""
