"""A study on a Slurm cluster: site file, profile, costs beforehand, progress, and what a job ran on."""
