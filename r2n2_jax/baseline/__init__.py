"""The paper's three transformation models (section 2.1), dense, B-spline and Gaussians, and one engine that fits them."""
