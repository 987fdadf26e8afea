"""The guard as a service: routes that existing clients call, and a proxy in front of a model."""
