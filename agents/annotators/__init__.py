"""Models as stages of `seg_env.data.annotate`: detection, segmentation, description.

They are named on the command line by a word or an import path and loaded when a run starts, so
importing this package is cheap.
"""
