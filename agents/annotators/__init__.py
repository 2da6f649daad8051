"""Models as stages of `seg_env.data.annotate`: detection, segmentation, description."""
