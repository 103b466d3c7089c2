"""What each layer and channel group may become."""
