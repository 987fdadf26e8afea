"""TSGB: train a small guard by self-play, put it in front of big black boxes, measure the transfer."""
