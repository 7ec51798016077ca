"""Of `photographs.py`: what it trains and measures, and the page made of that."""
