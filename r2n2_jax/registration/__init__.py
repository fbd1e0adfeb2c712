"""From a pair of images to a result: where the images lie, what the network finds, what refinement makes of it."""
