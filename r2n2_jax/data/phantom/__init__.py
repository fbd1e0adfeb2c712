"""The built-in phantom: a breathing thorax whose every motion is a formula."""
