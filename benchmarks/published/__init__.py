"""Of the published figures: the grid of measurements, result files, and the texts made of them."""
