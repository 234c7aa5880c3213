package configs

// Meant is the known name that was probably meant: two slips of the finger away at most, in less than half of the
// name. It is empty if none is so near.
func Meant(name string, known []string) string {
	best, at := "", 3
	for _, k := range known {
		if d := slips(name, k); d < at && 2*d < len(k) {
			best, at = k, d
		}
	}
	return best
}

// slips is how many bytes have to be typed, dropped, replaced or swapped with their neighbour to make b of a
// (the optimal string alignment distance).
func slips(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, replaced)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
