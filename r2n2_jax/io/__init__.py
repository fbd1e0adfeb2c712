"""What is read and written: images, series, landmarks, folders; the only place that knows a file format."""
