"""neurofleet: fit neuron models on a fleet, survive what breaks, get the serial numbers."""

__version__ = "0.1.0"
