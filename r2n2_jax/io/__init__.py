"""What is read and written: images, series, landmarks, folders. The only place that knows a file format."""
