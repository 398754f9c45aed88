"""The commands of `tenantry`, one module for each part of the installation they speak to."""
