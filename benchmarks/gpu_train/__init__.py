"""A run of minutes on a GPU machine: see gpu_train.sh. A plan of `ddsm` commands, no trainer."""
