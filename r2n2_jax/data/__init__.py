"""Image pairs to train and test on: the built-in phantom, and folders of image series."""
