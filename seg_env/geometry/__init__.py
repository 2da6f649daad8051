"""Rings, masks and run lengths: tracing, filling by COCO's rule, overlap and simplification.

`polygon` handles rings, `rle` run lengths; `contour` goes from masks to rings, `raster` back;
`regions` holds filled spans and their boundaries, `overlap` counts shared pixels without masks,
`simplify` removes vertices.
"""
