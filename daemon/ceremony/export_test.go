package ceremony

import "hsmbridge/hsm/wrapping"

// Plan is what Choose finds.
func (r *Room) Plan(p wrapping.Plan) { r.plan = p }
