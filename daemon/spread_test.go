package daemon

import (
	"fmt"
	"testing"

	"hsmbridge/daemon/store"
)

// All places begin at once, with different keys; nothing is lost; jobs for keys as a whole have their turn too.
func TestSpread(t *testing.T) {
	const keys, places = 30, 5
	var list []store.Job
	for k := range keys {
		for p := range places {
			list = append(list, store.Job{Key: fmt.Sprint(k), Destination: fmt.Sprintf("arn:aws:kms:region-%d:111122223333:key/%d", p, k)})
		}
	}
	list = append(list, store.Job{Key: "whole", Kind: store.KindRotate})
	got := spread(list)
	first, seen := map[string]bool{}, map[store.Job]bool{}
	for i, j := range got {
		seen[j] = true
		if i < places+1 {
			first[j.Place()] = true
		}
	}
	if len(got) != len(list) || len(seen) != len(list) {
		t.Errorf("%d jobs of %d, %d different ones", len(got), len(list), len(seen))
	}
	if len(first) != places+1 {
		t.Errorf("the first jobs are those of %v", first)
	}
	for from := range places { // what is under way at a time in all places
		under := map[string]int{}
		for _, j := range got[1+from*places : 1+(from+1)*places] {
			under[j.Key]++
			if under[j.Key] > 1 {
				t.Errorf("key %s is under way twice", j.Key)
			}
		}
	}
}

// Enough jobs are under way for the quota, or for the HSM where there is none to speak of.
func TestWorkers(t *testing.T) {
	for rate, want := range map[float64]int{0: 4, 0.25: 4, 1: 4, 4: 12, 10: 16, 1000: 16} {
		if got := workers(rate); got != want {
			t.Errorf("at %g a second %d jobs are under way, not %d", rate, got, want)
		}
	}
}
