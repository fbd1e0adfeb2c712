"""The network, in Flax linen: batches of feature maps ``[B, *spatial, C]`` float32, 2D and 3D by shape."""
