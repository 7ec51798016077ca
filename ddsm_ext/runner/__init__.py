"""Steps of a network as lists of kernel calls on buffers laid out beforehand."""
