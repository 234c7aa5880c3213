// Package fleet holds tests of the daemon that take whole processes, real tokens and years: it is killed at every step, frozen and
// overtaken, cut off, started with ten thousand keys, and run through two years of a fleet under a simulated clock.
package fleet
