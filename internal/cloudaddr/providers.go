package cloudaddr

import (
	"context"
	"errors"
	"net/http"
	"strings"
)

// provider is how one cloud is asked: base is its metadata service, ask returns
// the address as text.
type provider struct {
	base string
	ask  func(ctx context.Context, c *client) (string, error)
}

const linkLocal = "http://169.254.169.254"

var providers = map[string]provider{
	"GCP":     {"http://metadata.google.internal", askGCP},
	"AWS":     {linkLocal, askAWS},
	"AZURE":   {linkLocal, askAzure},
	"TENCENT": {"http://metadata.tencentyun.com", askTencent},
	"ALIBABA": {"http://100.100.100.200", askAlibaba},
	"LINODE":  {linkLocal, askLinode},
}

func askGCP(ctx context.Context, c *client) (string, error) {
	return c.get(ctx, "/computeMetadata/v1/instance/network-interfaces/0/access-configs/0/external-ip", header{"Metadata-Flavor", "Google"})
}

func askAWS(ctx context.Context, c *client) (string, error) {
	token, err := c.do(ctx, http.MethodPut, "/latest/api/token", header{"X-aws-ec2-metadata-token-ttl-seconds", "60"})
	if err != nil {
		return "", err
	}
	return c.get(ctx, "/latest/meta-data/public-ipv4", header{"X-aws-ec2-metadata-token", strings.TrimSpace(token)})
}

// askAzure asks the machine's own public address, and the load balancer's when
// it has none: that one is listed by the machine's private address.
func askAzure(ctx context.Context, c *client) (string, error) {
	const (
		nic = "/metadata/instance/network/interface/0/ipv4/ipAddress/0/"
		v   = "?api-version=2021-12-13&format=text"
	)
	metadata := header{"Metadata", "true"}
	public, err := c.get(ctx, nic+"publicIpAddress"+v, metadata)
	if err != nil || strings.TrimSpace(public) != "" {
		return public, err
	}
	private, err := c.get(ctx, nic+"privateIpAddress"+v, metadata)
	if err != nil {
		return "", err
	}
	var answer struct {
		LoadBalancer struct {
			PublicIPAddresses []struct {
				Frontend string `json:"frontendIpAddress"`
				Private  string `json:"privateIpAddress"`
			} `json:"publicIpAddresses"`
		} `json:"loadbalancer"`
	}
	if err := c.getJSON(ctx, "/metadata/loadbalancer?api-version=2020-10-01", &answer, metadata); err != nil {
		return "", err
	}
	for _, a := range answer.LoadBalancer.PublicIPAddresses {
		if a.Private == strings.TrimSpace(private) {
			return strings.Trim(a.Frontend, "[]"), nil
		}
	}
	return "", errors.New("neither the machine nor a load balancer in front of it has a public address")
}

func askTencent(ctx context.Context, c *client) (string, error) {
	return c.get(ctx, "/latest/meta-data/public-ipv4")
}

// askAlibaba gets a token only where the instance is hardened and insists on one.
func askAlibaba(ctx context.Context, c *client) (string, error) {
	const path = "/latest/meta-data/eipv4"
	ip, err := c.get(ctx, path)
	if s, ok := errors.AsType[statusError](err); !ok || s != http.StatusForbidden && s != http.StatusUnauthorized {
		return ip, err
	}
	token, err := c.do(ctx, http.MethodPut, "/latest/api/token", header{"X-aliyun-ecs-metadata-token-ttl-seconds", "60"})
	if err != nil {
		return "", err
	}
	return c.get(ctx, path, header{"X-aliyun-ecs-metadata-token", strings.TrimSpace(token)})
}

func askLinode(ctx context.Context, c *client) (string, error) {
	token, err := c.do(ctx, http.MethodPut, "/v1/token", header{"Metadata-Token-Expiry-Seconds", "60"})
	if err != nil {
		return "", err
	}
	var answer struct {
		IPv4 struct {
			Public []string `json:"public"`
		} `json:"ipv4"`
	}
	err = c.getJSON(ctx, "/v1/network", &answer, header{"Metadata-Token", strings.TrimSpace(token)}, header{"Accept", "application/json"})
	if err != nil {
		return "", err
	}
	if len(answer.IPv4.Public) == 0 {
		return "", errors.New("the machine has no public IPv4 address")
	}
	return strings.TrimSuffix(answer.IPv4.Public[0], "/32"), nil
}
