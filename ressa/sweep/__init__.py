"""A sweep on Ray: trials, gangs of workers, progress and resuming. The only home of ray."""
