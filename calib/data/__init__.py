"""Image data: files and Python readers, the choice of images, preprocessing."""
