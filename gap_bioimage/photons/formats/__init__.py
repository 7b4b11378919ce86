"""Image files of each format, opened without reading them."""
