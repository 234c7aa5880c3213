// Package performance writes the figures of docs/performance.md: `make bench` gives it what the benchmarks said, and it puts a table for each between the
// marks that name it. What stands around the marks is written by people.
package performance
