"""From answers to one target text each: padding around the wanted sentence goes."""
