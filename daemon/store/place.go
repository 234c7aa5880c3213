package store

import "strings"

// Place is the account and the Region of the job's destination, as ACCOUNT/REGION; empty for a job for the key as a whole. AWS counts
// requests for each of them.
func (j Job) Place() string {
	parts := strings.Split(j.Destination, ":")
	const fields = 6 // arn:partition:kms:region:account:key/id
	if len(parts) != fields {
		return ""
	}
	return parts[4] + "/" + parts[3]
}
