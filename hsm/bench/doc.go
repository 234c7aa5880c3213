// Package bench measures wraps per second through hsm beside the same loop in C, on the same token in the same
// run. `make bench` runs it; the figures are ratios, for absolute ones differ from machine to machine.
package bench
