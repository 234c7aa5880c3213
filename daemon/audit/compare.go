package audit

import (
	"cmp"
	"slices"
	"time"
)

// end compares the records with the checkpoints, the smallest first.
func (v *verifier) end() {
	v.points = slices.DeleteFunc(v.points, func(p point) bool {
		if p.Origin == v.report.Origin {
			return false
		}
		v.problem(0, 0, Checkpoints, "the checkpoint that was kept elsewhere is of another log, %s", p.Origin)
		return true
	})
	slices.SortStableFunc(v.points, func(a, b point) int { return cmp.Compare(a.Size, b.Size) })
	whole := v.missing()
	t := tree{}
	good := tree{} // at the last checkpoint that fitted
	lost := false  // some record up to here is not the one that was signed
	for _, p := range v.points {
		if p.Size > whole {
			break
		}
		v.grow(&t, p.Size)
		if t.root() != p.Root && !lost {
			if with, ok := v.repair(good, p); ok {
				t = with
			}
		}
		switch {
		case t.root() == p.Root:
			good = t.clone()
			lost = false
			v.fits(p)
		case !lost:
			lost = true
			v.different(good.size+1, p)
		}
	}
	v.cut()
	if whole == v.top && !lost {
		v.grow(&t, whole)
		root := t.root()
		v.report.Root = root.String()
	}
	if len(v.o.Keys) > 0 && v.report.Records > 0 && v.report.Signed == 0 && v.report.OK() {
		v.problem(1, v.top, Unsigned, "no record is under a checkpoint that this key signed: whoever could write the file could have written all of it")
	}
	slices.SortStableFunc(v.report.Problems, func(a, b Problem) int { return cmp.Compare(a.First, b.First) })
}

// missing tells which records are missing, and gives up to which number none is.
func (v *verifier) missing() (whole int64) {
	whole = v.top
	next := int64(1)
	tell := func(first, last int64) {
		if first > last {
			return
		}
		whole = min(whole, first-1)
		if first == last {
			v.problem(first, last, Removed, "record %d is missing", first)
			return
		}
		v.problem(first, last, Removed, "records %d to %d are missing", first, last)
	}
	late := make([]int64, 0, len(v.late))
	for n := range v.late {
		late = append(late, n)
	}
	slices.Sort(late)
	for _, r := range v.runs {
		for len(late) > 0 && late[0] < r.first {
			tell(next, late[0]-1)
			next, late = late[0]+1, late[1:]
		}
		tell(next, r.first-1)
		next = r.end()
	}
	return whole
}

// grow adds the records up to a number, which are all there.
func (v *verifier) grow(t *tree, to int64) {
	for t.size < to {
		leaf, _ := v.leaf(t.size + 1)
		t.add(leaf)
	}
}

// repair looks whether the checkpoint is of the other hash that one of the records, or each of them, may have.
func (v *verifier) repair(good tree, p point) (tree, bool) {
	var list []int64
	for n := range v.other {
		if n > good.size && n <= p.Size {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	const most = 64 // each one costs as much as all records since the last checkpoint
	for _, n := range list[:min(len(list), most)] {
		if t, ok := v.with(good, p, []int64{n}); ok {
			return t, true
		}
	}
	if len(list) > 1 {
		return v.with(good, p, list)
	}
	return tree{}, false
}

func (v *verifier) with(good tree, p point, numbers []int64) (tree, bool) {
	t := good.clone()
	for t.size < p.Size {
		leaf, _ := v.leaf(t.size + 1)
		if slices.Contains(numbers, t.size+1) {
			leaf = v.other[t.size+1].hash
		}
		t.add(leaf)
	}
	if t.root() != p.Root {
		return t, false
	}
	for _, n := range numbers {
		a := v.other[n]
		for i, have := range v.report.Problems {
			if have.First == n && have.What == a.what {
				v.report.Problems[i].Message += "; " + a.says
				break
			}
		}
	}
	return t, true
}

func (v *verifier) fits(p point) {
	if p.kept {
		v.report.Kept = p.Size
	}
	if p.Size >= v.report.Signed {
		v.report.Signed, v.report.SignedAt, v.report.Last = p.Size, p.Time, p.Checkpoint
	}
}

// different says that the records up to a checkpoint are not those of which it was made.
func (v *verifier) different(first int64, p point) {
	which, at := "the checkpoint", p.Time.Format(time.RFC3339)
	if p.kept {
		which = "the checkpoint that was kept elsewhere,"
	}
	if first = min(first, p.Size); first == p.Size {
		v.problem(first, first, Edited, "record %d was changed together with its hash: it is not the one of %s of %s", first, which, at)
		return
	}
	v.problem(first, p.Size, Edited, "at least one of the records %d to %d was changed together with its hash: they are not those of %s of %s", first, p.Size, which, at)
}

// cut says that a checkpoint has more records than there are.
func (v *verifier) cut() {
	if len(v.points) == 0 {
		return
	}
	p := v.points[len(v.points)-1]
	if p.Size <= v.top {
		return
	}
	which := "a checkpoint"
	if p.kept {
		which = "the checkpoint that was kept elsewhere,"
	}
	if v.top+1 == p.Size {
		v.problem(p.Size, p.Size, Truncated, "record %d is cut off: %s of %s has it", p.Size, which, p.Time.Format(time.RFC3339))
		return
	}
	v.problem(v.top+1, p.Size, Truncated, "the records %d to %d are cut off: %s of %s has %d", v.top+1, p.Size, which, p.Time.Format(time.RFC3339), p.Size)
}
