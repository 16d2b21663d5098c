"""Many processes: all of torch.distributed that the package uses."""
