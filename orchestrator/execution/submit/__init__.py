"""Plans on a Ray cluster elsewhere: what is packed, the command of the job, and the client of Ray's Jobs API."""
