"""The winner trained once more on training and validation labels, and whether the result may be deployed."""
