"""`colo import`: a VM file from a QEMU that runs, or from what libvirt or Proxmox would start."""
