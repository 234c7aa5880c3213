package control

import (
	"context"
	"net/http"
)

// approvalRoutes are those of requests for approval. Whoever may look may hand in a signature: it says itself whose it is.
func approvalRoutes() []route {
	signed := func(ctx context.Context, r *request, f func(ctx context.Context, in SignatureRequest) (Request, error)) (any, error) {
		var in SignatureRequest
		if err := r.decode(&in); err != nil {
			return nil, err
		}
		q, err := f(ctx, in)
		return RequestList{[]Request{complete(q)}}, err
	}
	return []route{
		{method: http.MethodGet, path: "/v1/requests", permission: mayLook, summary: "Requests for approval, the latest first", query: map[string]string{"key": "only of this key", "all": "true: also those that are closed", "limit": "at most so many"}, out: RequestList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			limit, err := r.number("limit")
			if err != nil {
				return nil, err
			}
			list, err := s.Requests(ctx, r.query.Get("key"), r.query.Get("all") == "true", int(limit))
			for i := range list {
				list[i] = complete(list[i])
			}
			return RequestList{all(list)}, err
		}},
		{method: http.MethodGet, path: "/v1/requests/{name}", permission: mayLook, summary: "One request for approval: its text, what its signatures are worth now, and what is different from the last one", out: RequestList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			q, err := s.Request(ctx, r.path("name"))
			return RequestList{[]Request{complete(q)}}, err
		}},
		{method: http.MethodPost, path: "/v1/requests/{name}/approve", permission: mayLook, summary: "Hand in an officer's signature over the text, in the namespace hsmbridge-approval", in: SignatureRequest{}, out: RequestList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			return signed(ctx, r, func(ctx context.Context, in SignatureRequest) (Request, error) {
				return s.Approve(ctx, r.actor, r.path("name"), in.Signature)
			})
		}},
		{method: http.MethodPost, path: "/v1/requests/{name}/reject", permission: mayLook, summary: "Hand in an officer's signed no, in the namespace hsmbridge-rejection", in: SignatureRequest{}, out: RequestList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			return signed(ctx, r, func(ctx context.Context, in SignatureRequest) (Request, error) {
				return s.Reject(ctx, r.actor, r.path("name"), in.Reason, in.Signature)
			})
		}},
		{method: http.MethodPost, path: "/v1/requests/{name}/withdraw", permission: mayOperate, summary: "Take a request back that no job waits for", in: ReasonRequest{}, out: RequestList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			var in ReasonRequest
			if err := r.decode(&in); err != nil {
				return nil, err
			}
			q, err := s.Withdraw(ctx, r.actor, r.path("name"), in.Reason)
			return RequestList{[]Request{complete(q)}}, err
		}},
		{method: http.MethodPost, path: "/v1/keys/{name}/standing", permission: mayOperate, summary: "Ask officers to approve renewals of the same material in advance", in: StandingRequest{}, out: RequestList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			var in StandingRequest
			if err := r.decode(&in); err != nil {
				return nil, err
			}
			list, err := s.Standing(ctx, r.actor, r.path("name"), in)
			for i := range list {
				list[i] = complete(list[i])
			}
			return RequestList{all(list)}, err
		}},
	}
}

// complete has [] in the place of null.
func complete(q Request) Request {
	q.Signed, q.Officers, q.Differences, q.Decision.Verdicts = all(q.Signed), all(q.Officers), all(q.Differences), all(q.Decision.Verdicts)
	for i := range q.Officers {
		q.Officers[i].Keys = all(q.Officers[i].Keys)
	}
	return q
}
