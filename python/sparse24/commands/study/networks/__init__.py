"""The networks of the study: small, with blocks as their papers draw them, for one core and a minute.

Images are [N, 1, H, W] in 0 to 1. ``features(network)`` of a classifier are the maps of its stages.
"""
