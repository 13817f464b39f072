"""The VM file, read and checked."""

from colo.config.vm import TlsFiles, VmConfig, load

__all__ = ["TlsFiles", "VmConfig", "load"]
