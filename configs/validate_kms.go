package configs

import (
	"net/netip"
	"net/url"
	"strings"
)

func (v validator) kms() {
	k := v.c.KMS
	if k.Region != "" {
		v.matches("kms.region", k.Region, regionPattern, "an AWS Region such as eu-central-1")
	}
	v.endpoint("kms.endpoint", k.Endpoint)
	if at := "kms.fips"; v.ok(at) && k.FIPS {
		switch {
		case k.Endpoint != "":
			v.problem(at, "fips chooses AWS's endpoint and endpoint is another one: write the FIPS endpoint in endpoint, or leave endpoint out")
		case strings.HasPrefix(k.Region, "cn-"):
			v.problem(at, "AWS has no FIPS endpoints in China: leave fips out")
		}
	}
	if at := "kms.watch_every"; v.ok(at) && (k.WatchEvery == Never || k.WatchEvery.Duration() > day) {
		v.problem(at, "%s is not between 1m and 1d: what is deleted in KMS has to be seen; leave it out for every %s", k.WatchEvery, Duration(defaultWatch))
	}
}

// endpoint checks an endpoint of KMS; empty is none.
func (v validator) endpoint(path, value string) {
	if !v.ok(path) || value == "" {
		return
	}
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		v.problem(path, "this is not an endpoint: write https://HOST or https://HOST:PORT")
	case u.User != nil:
		v.problem(path, "credentials never stand in a configuration: use the AWS credential chain or kms.profile")
	case u.RawQuery != "" || u.Fragment != "":
		v.problem(path, "an endpoint has no '?' or '#': leave out what follows")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		v.problem(path, "http is refused except on this machine: TLS is what shows that the wrapping public key comes from KMS; write https")
	}
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Zone() == "" && ip.Unmap().IsLoopback()
}

// hostPort splits host:port and [address]:port. Package net has this too, and is kept out of what goes into the HSM room.
func hostPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", false
	}
	host, port = s[:i], s[i+1:]
	if inside, cut := strings.CutPrefix(host, "["); cut {
		host, cut = strings.CutSuffix(inside, "]")
		return host, port, cut && !strings.ContainsAny(host, "[]")
	}
	return host, port, !strings.ContainsAny(host, ":[]")
}
