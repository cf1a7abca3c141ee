"""Parts that captioners and segmenters share: finding and loading a model as data, preparing the images it sees."""
