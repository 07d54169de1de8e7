"""What rules and scripts share: the study's paths and the frame of a job."""
