"""The paper's three transformation models (section 2.1): dense, interpolating B-spline, sum of local Gaussians."""
