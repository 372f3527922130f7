"""Files that put `kdzoo serve` on a machine or into a cluster, with resources that follow from what was measured. Torch-free."""
